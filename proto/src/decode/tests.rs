//! Transcripts, cut everywhere.

extern crate alloc;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::*;

/// Decodes `pieces` as they arrive and writes down every operation with the number of bytes that had come by then, and
/// how it ended.
fn transcript<D: Decode>(mut decoder: D, pieces: &[&[u8]]) -> String
where
    for<'a> D::Op<'a>: core::fmt::Debug,
{
    let mut lines = Vec::new();
    let mut buffer = Vec::new();
    let mut came = 0;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        came += piece.len();
        loop {
            let step = decoder.decode(&buffer).map(|step| match step {
                Step::Op { op, used } => Some((format!("{op:?}"), used)),
                Step::More { missing } => {
                    assert!(missing > 0);
                    None
                }
            });
            match step {
                Ok(Some((op, used))) => {
                    lines.push(format!("{op} @{}", came - buffer.len() + used));
                    buffer.drain(..used);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.decode(b"PING\r\n").err(), Some(error), "an error stays");
                    lines.push(error.to_string());
                    return lines.join("\n");
                }
            }
        }
    }
    if !buffer.is_empty() {
        lines.push(format!("{} bytes wait", buffer.len()));
    }
    lines.join("\n")
}

/// The transcript of `input`, which must not depend on how it is cut.
fn uncut<D: Decode + Clone>(decoder: &D, input: &[u8]) -> String
where
    for<'a> D::Op<'a>: core::fmt::Debug,
{
    let whole = transcript(decoder.clone(), &[input]);
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(transcript(decoder.clone(), &bytes), whole, "byte by byte: {}", input.escape_ascii());
    for cut in 1..input.len() {
        let (a, b) = input.split_at(cut);
        assert_eq!(transcript(decoder.clone(), &[a, b]), whole, "cut at {cut}: {}", input.escape_ascii());
    }
    whole
}

#[track_caller]
fn from_client(input: &str, expected: &str) {
    let limits = Limits { line_bytes_max: 40, info_bytes_max: 40, payload_bytes_max: 64 };
    assert_eq!(uncut(&ServerDecoder::new(limits), input.as_bytes()), expected, "{input:?}");
}

#[track_caller]
fn from_server(input: &str, expected: &str) {
    let limits = Limits { line_bytes_max: 40, info_bytes_max: 60, payload_bytes_max: 64 };
    assert_eq!(uncut(&ClientDecoder::new(limits), input.as_bytes()), expected, "{input:?}");
}

#[test]
fn an_error_says_what_where_and_what_came() {
    for (input, expected) in [
        ("xxx\r\n", "operation at byte 0: expected a verb, found `x`"),
        ("PING\r\nPUBS\r\n", "Ping @6\noperation at byte 6: expected a verb, found `PUBS`"),
        ("\r\n", "operation at byte 0: expected a verb, found `\\r`"),
        (" PING\r\n", "operation at byte 0: expected a verb, found ` `"),
        ("-ERR 'x'\r\n", "operation at byte 0: expected a verb, found `-`"),
        ("MSG a 1 1\r\n", "operation at byte 0: expected a verb, found `M`"),
        ("HMSG a 1 1\r\n", "operation at byte 0: expected a verb, found `HM`"),
        ("PUB\r\n", "operation at byte 0: expected a verb, found `PUB\\r`"),
        ("PUB \r\n", "PUB at byte 0: expected 2 or 3 arguments, found 0"),
        ("PUB a b c 1\r\n", "PUB at byte 0: expected 2 or 3 arguments, found 4"),
        ("HPUB a 1\r\n", "HPUB at byte 0: expected 3 or 4 arguments, found 2"),
        ("SUB a\r\n", "SUB at byte 0: expected 2 or 3 arguments, found 1"),
        ("SUB a b c d\r\n", "SUB at byte 0: expected 2 or 3 arguments, found 4"),
        ("UNSUB a b c\r\n", "UNSUB at byte 0: expected 1 or 2 arguments, found 3"),
        ("CONNECT\r\n", "CONNECT at byte 0: expected 1 arguments, found 0"),
        ("PUB a 12x\r\n", "PUB at byte 0: length `12x` is not a number"),
        ("PUB a 0000000001\r\n", "PUB at byte 0: length `0000000001` is not a number"),
        ("PUB a -1\r\n", "PUB at byte 0: length `-1` is not a number"),
        ("PUB a 65\r\n", "PUB at byte 0: payload length 65 is above the limit of 64 bytes"),
        ("HPUB a 3 2\r\n", "HPUB at byte 0: header length 3 is above the total length 2"),
        ("HPUB a 99 98\r\n", "HPUB at byte 0: header length 99 is above the total length 98"),
        ("PUB a 2\r\nokX\r\n", "PUB at byte 0: expected CR LF after 2 bytes of payload, found `X`"),
        ("PUB a 2\r\nok\rX", "PUB at byte 0: expected CR LF after 2 bytes of payload, found `X`"),
        ("PUB a 2\r\nok\nX", "PUB at byte 0: expected CR LF after 2 bytes of payload, found `\\n`"),
        ("PUB fo\ro 2\r\nok\r\n", "PUB at byte 0: carriage return inside the line, after `fo`"),
        ("PUB a 2\r\r\nok\r\n", "PUB at byte 0: carriage return inside the line, after `a 2`"),
        ("SUB a\rb 1\r\n", "SUB at byte 0: carriage return inside the line, after `a`"),
    ] {
        from_client(input, expected);
    }
    for (input, expected) in [
        ("PUB a 1\r\n", "operation at byte 0: expected a verb, found `PU`"),
        ("CONNECT {}\r\n", "operation at byte 0: expected a verb, found `C`"),
        ("INFO{}\r\n", "operation at byte 0: expected a verb, found `INFO{`"),
        ("-ERR\r\n", "operation at byte 0: expected a verb, found `-ERR\\r`"),
        ("MSGS a 1 1\r\n", "operation at byte 0: expected a verb, found `MSGS`"),
        ("MSG a 1\r\n", "MSG at byte 0: expected 3 or 4 arguments, found 2"),
        ("MSG a 1 r 2 3\r\n", "MSG at byte 0: expected 3 or 4 arguments, found 5"),
        ("HMSG a 1 12\r\n", "HMSG at byte 0: expected 4 or 5 arguments, found 3"),
        ("HMSG a 1 r 1 2 3\r\n", "HMSG at byte 0: expected 4 or 5 arguments, found 6"),
        ("MSG a 1 18446744073709551618\r\n", "MSG at byte 0: length `18446744073709551618` is not a number"),
        (
            "MSG a 1 18446744073709551615\r\n",
            "MSG at byte 0: payload length 18446744073709551615 is above the limit of 64 bytes",
        ),
        ("MSG a 1 2\r\nok\n", "MSG at byte 0: expected CR LF after 2 bytes of payload, found `\\n`"),
    ] {
        from_server(input, expected);
    }
}

#[test]
fn what_a_client_may_send_is_read_as_nats_server_reads_it() {
    for (input, expected) in [
        ("", ""),
        ("pInG\r\nPONG\n+ok junk\r\nPINGER \t\r\r\n", "Ping @6\nPong @11\nOk @21\nPing @32"),
        ("PING\r", "5 bytes wait"),
        ("INFO{}\r\n", "Info([123, 125]) @8"),
        ("connect\t {} \t\r\nCONNECT{}\n", "Connect([123, 125]) @15\nConnect([123, 125]) @25"),
        ("SUB a.> 1\r\n", "Subscribe(Subscribe { subject: [97, 46, 62], queue: None, sid: [49] }) @11"),
        ("sub\t a \tq  1\t\n", "Subscribe(Subscribe { subject: [97], queue: Some([113]), sid: [49] }) @14"),
        ("SUB a 1\r\r\n", "Subscribe(Subscribe { subject: [97], queue: None, sid: [49] }) @10"),
        ("UNSUB 1\r\n", "Unsubscribe(Unsubscribe { sid: [49], max: None }) @9"),
        ("UNSUB 1 0\r\n", "Unsubscribe(Unsubscribe { sid: [49], max: Some(0) }) @11"),
        ("UNSUB 1 x\r\n", "Unsubscribe(Unsubscribe { sid: [49], max: None }) @11"),
        ("UNSUB 1 0000000005\r\n", "Unsubscribe(Unsubscribe { sid: [49], max: None }) @20"),
        ("UNSUB 1 000000005\r\n", "Unsubscribe(Unsubscribe { sid: [49], max: Some(5) }) @19"),
        (
            "PUB a 2\r\n\r\n\r\n",
            "Publish(Publish { subject: [97], reply: None, headers: None, payload: [13, 10] }) @13",
        ),
        (
            "PUB \t a  b\t000000000 \n\r\n",
            "Publish(Publish { subject: [97], reply: Some([98]), headers: None, payload: [] }) @24",
        ),
        (
            "HPUB a 1 2\r\nhp\r\n",
            "Publish(Publish { subject: [97], reply: None, headers: Some(Headers(h)), payload: [112] }) @16",
        ),
        (
            "HPUB a b 0 1\r\np\r\n",
            "Publish(Publish { subject: [97], reply: Some([98]), headers: Some(Headers()), payload: [112] }) @17",
        ),
    ] {
        from_client(input, expected);
    }
}

#[test]
fn what_a_server_sends_is_read_with_the_same_tolerance() {
    for (input, expected) in [
        ("INFO {\"a\":1} \r\n", "Info([123, 34, 97, 34, 58, 49, 125]) @15"),
        ("INFO {", "6 bytes wait"),
        ("+OK\r\nPONG\r\nPING\r\n", "Ok @5\nPong @11\nPing @17"),
        (
            "-ERR 'a b'\r\n-err c \n-ERR \r\n",
            "Err(ErrText('a b')) @12\nErr(ErrText('c')) @20\nErr(ErrText('')) @27",
        ),
        (
            "MSG a 1 0000000000002\r\nok\r\n",
            "Message(Message { subject: [97], sid: [49], reply: None, headers: None, payload: [111, 107] }) @27",
        ),
        (
            "MSG a\rb 1  r 0\r\r\n\r\n",
            "Message(Message { subject: [97, 13, 98], sid: [49], reply: Some([114]), headers: None, payload: [] }) @19",
        ),
        (
            "HMSG a 1 1 1\r\nh\r\n",
            "Message(Message { subject: [97], sid: [49], reply: None, headers: Some(Headers(h)), payload: [] }) @17",
        ),
        (
            "hmsg\ta\t1\tr\t0\t1\np\r\n",
            "Message(Message { subject: [97], sid: [49], reply: Some([114]), headers: Some(Headers()), payload: [112] }) @18",
        ),
    ] {
        from_server(input, expected);
    }
}

#[test]
fn lines_are_measured_from_their_first_argument_to_their_end() {
    let blanks = " ".repeat(100);
    for (args, refused) in [
        (format!("{} 1", "a".repeat(38)), false),
        (format!("{} 1", "a".repeat(39)), true),
        (format!("a 1{}", " ".repeat(37)), false),
        (format!("a 1{}", " ".repeat(38)), true),
    ] {
        for (start, end) in [("SUB ", "\r\n"), ("SUB ", "\n"), (&format!("SUB {blanks}"), "\r\n")] {
            let input = format!("{start}{args}{end}");
            let came = uncut(&ServerDecoder::new(LIMITS), input.as_bytes());
            assert_eq!(
                came == "SUB at byte 0: line is longer than the limit of 40 bytes",
                refused,
                "{input:?}"
            );
            assert_eq!(came.starts_with("Subscribe"), !refused, "{came} {input:?}");
        }
        let unended = format!("SUB {args}");
        let came = uncut(&ServerDecoder::new(LIMITS), unended.as_bytes());
        assert_eq!(came.ends_with(" wait"), !refused, "{unended:?}");
    }
    // One CR may still belong to the end of the line, a second one cannot.
    let full = format!("SUB {}", "a".repeat(40));
    from_client(&format!("{full}\r"), "45 bytes wait");
    from_client(&format!("{full}\r\r"), "SUB at byte 0: line is longer than the limit of 40 bytes");
}

const LIMITS: Limits = Limits { line_bytes_max: 40, info_bytes_max: 40, payload_bytes_max: 64 };

#[test]
fn what_is_ignored_is_bounded_too() {
    for (verb, rest) in [("PING", "\r\n"), ("SUB", "a 1\r\n")] {
        let fits = format!("{verb}{}{rest}", " ".repeat(IGNORED_BYTES_MAX - 1));
        let over = format!("{verb}{}{rest}", " ".repeat(IGNORED_BYTES_MAX + 1));
        let decode = |input: &String| transcript(ServerDecoder::new(LIMITS), &[input.as_bytes()]);
        assert!(decode(&fits).ends_with(&format!("@{}", fits.len())), "{}", decode(&fits));
        assert!(decode(&over).contains("longer than the limit of 65536 bytes"), "{}", decode(&over));
        let unended = &over.as_bytes()[..over.len() - rest.len()];
        assert_eq!(transcript(ServerDecoder::new(LIMITS), &[unended]), decode(&over));
    }
}

#[test]
fn the_missing_bytes_of_a_payload_are_counted_exactly() {
    let input = b"HMSG a 1 3 10\r\n0123456789\r\n";
    let mut decoder = ClientDecoder::new(Limits::client());
    for came in 15..input.len() {
        let missing = input.len() - came;
        assert_eq!(decoder.decode(&input[..came]), Ok(Step::More { missing }));
    }
    assert_eq!(decoder.offset(), 0);
    assert!(matches!(decoder.decode(input), Ok(Step::Op { used: 27, .. })));
    assert_eq!(decoder.offset(), 27);
}

/// The short way needs bytes behind the operation, so what is tested above alone is tested here with company.
#[test]
fn the_short_way_for_whole_messages_says_the_same_as_the_long_one() {
    let tail = "PING\r\n".repeat(20);
    let long = "a.".repeat(15) + "a";
    let too_long = "a.".repeat(21) + "a";
    let longer = "a.".repeat(30) + "a";
    for line in [
        "MSG a 1 5",
        "MSG a 1 r 5",
        "MSG a 1 05",
        "MSG a 1 00000005",
        "MSG a 1 000000005",
        "MSG a\x001 1 5",
        "MSG a\r 1 5",
        "MSG a  1 5",
        "MSG a 1 5 ",
        "MSG a 1  r 5",
        "MSG a\t1 5",
        "msg a 1 5",
        "MSG  a 1 5",
        "MSG",
        "MSG ",
        "MSG a",
        "MSG a 1",
        "MSG a 1 r s 5",
        "MSG a 1 x",
        "MSG a 1 :",
        "MSG a 1 /",
        "MSG a 1 65",
        "MSG a 1 99999999",
        "MSG a 1 4",
        "HMSG a 1 2 5",
        "HMSG a 1 r 2 5",
        "HMSG a 1 5 5",
        "HMSG a 1 6 5",
        "HMSG a 1 0 5",
        "HMSG\ta 1 2 5",
        "HMSGa 1 2 5",
        "HMSG a 1 5",
        "HMSG a 1 r s 2 5",
        "HMSG a 1 x 5",
        "HMSG a 1 2 x",
        "HMSG a 1\x00 2 5",
        &format!("MSG {long} 1 5"),
        &format!("MSG {longer} 1 5"),
        &format!("MSG {too_long} 1 5"),
        &format!("HMSG {long} 1 r 2 5"),
    ] {
        let both = |line: &str, from_server: bool| {
            let line = if from_server { line.into() } else { line.replace("MSG", "PUB").replace(" 1 ", " ") };
            for end in ["\r\n", "\n"] {
                let input = format!("{line}{end}hello\r\n{tail}");
                // In pieces of one byte the short way is never taken.
                if from_server {
                    uncut(&ClientDecoder::new(LIMITS), input.as_bytes());
                } else {
                    uncut(&ServerDecoder::new(LIMITS), input.as_bytes());
                }
            }
        };
        both(line, true);
        both(line, false);
    }
}

#[test]
fn fewer_bytes_than_before_are_no_reason_to_panic() {
    let input = b"MSG a 1 3\r\nabc\r\n";
    for came in 0..input.len() {
        for then in 0..came {
            let mut decoder = ClientDecoder::new(Limits::client());
            let _ = decoder.decode(&input[..came]);
            assert!(matches!(decoder.decode(&input[..then]), Ok(Step::More { .. })));
        }
    }
}

#[test]
fn the_largest_limits_do_not_overflow() {
    let limits =
        Limits { line_bytes_max: usize::MAX, info_bytes_max: usize::MAX, payload_bytes_max: usize::MAX };
    let mut decoder = ClientDecoder::new(limits);
    let input = format!("MSG a 1 {}\r\n", usize::MAX / 4);
    assert_eq!(decoder.decode(input.as_bytes()), Ok(Step::More { missing: usize::MAX / 4 + 2 }));
    let mut decoder = ClientDecoder::new(limits);
    let input = format!("MSG a 1 {}\r\n", usize::MAX);
    assert!(decoder.decode(input.as_bytes()).is_err());
}
