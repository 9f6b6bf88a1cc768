//! What the encoders write, the decoders of the other side read, byte for byte; and its length was known beforehand.

use nats_wire::{
    ClientDecoder, ClientOp, Cursor, ErrText, Header, HeaderBlock, JsonLine, Limits, QueueGroup,
    ServerDecoder, ServerOp, Sid, Step, Subject, SubjectFilter, Token, encode,
};
use proptest::prelude::*;

/// Any bytes that may be an argument.
fn token() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("an argument's byte", |byte| !b" \t\r\n".contains(byte));
    prop_oneof![4 => prop::collection::vec(byte, 1..40), 1 => "[a-z]{1,30}".prop_map(String::into_bytes)]
}

fn subject() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec("[a-zA-Z0-9_$ü]{1,12}", 1..6).prop_map(|parts| parts.join(".").into_bytes())
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..200),
        1 => (9_900..10_100_usize).prop_map(|len| vec![b'\n'; len]),
        1 => (99_990..100_010_usize).prop_map(|len| vec![b'\r'; len]),
    ]
}

fn lines() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("[!-9;-~]{1,12}", "([!-~ü]([ -~ü]{0,12}[!-~ü])?)?"), 0..5)
}

fn headers(lines: &[(String, String)]) -> Vec<Header<'_>> {
    lines.iter().map(|(name, value)| Header::new(name, value).expect("the line is right")).collect()
}

/// `write` into a vector and into a buffer of exactly `len` bytes, which must be the same.
fn written(
    len: usize,
    into_vec: impl FnOnce(&mut Vec<u8>),
    into_cursor: impl FnOnce(&mut Cursor<'_>) -> Result<(), nats_wire::Full>,
) -> Vec<u8> {
    let mut out = Vec::new();
    into_vec(&mut out);
    let mut room = vec![0; len];
    let mut cursor = Cursor::new(&mut room);
    into_cursor(&mut cursor).expect("the promised length is enough");
    assert_eq!(cursor.written(), out, "vector and buffer");
    assert_eq!(out.len(), len, "promised length");
    out
}

macro_rules! written {
    ($len:expr, $function:ident($($argument:expr),*)) => {
        written($len, |out| encode::$function(out, $($argument),*), |out| encode::$function(out, $($argument),*))
    };
}

fn client_op(bytes: &[u8]) -> ClientOp<'_> {
    match ServerDecoder::new(Limits::server()).decode(bytes) {
        Ok(Step::Op { op, used }) if used == bytes.len() => op,
        other => panic!("{other:?}: {}", bytes.escape_ascii()),
    }
}

fn server_op(bytes: &[u8]) -> ServerOp<'_> {
    match ClientDecoder::new(Limits::client()).decode(bytes) {
        Ok(Step::Op { op, used }) if used == bytes.len() => op,
        other => panic!("{other:?}: {}", bytes.escape_ascii()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_publish_is_read_as_it_was_written(
        to in subject(), reply in prop::option::of(subject()), payload in payload(), lines in prop::option::of(lines()),
    ) {
        let subject = Subject::new(&to).unwrap();
        let answer = reply.as_ref().map(|reply| Subject::new(reply).unwrap());
        let lines_to_write = lines.as_ref().map(|lines| headers(lines));
        let bytes = match &lines_to_write {
            None => {
                let len = encode::publish_len(subject, answer, payload.len());
                written!(len, publish(subject, answer, &payload))
            }
            Some(lines) => {
                let block = HeaderBlock::new(lines);
                let len = encode::publish_with_headers_len(subject, answer, block, payload.len());
                written!(len, publish_with_headers(subject, answer, block, &payload))
            }
        };
        let ClientOp::Publish(publish) = client_op(&bytes) else { panic!("no PUB") };
        prop_assert_eq!((publish.subject, publish.reply), (&to[..], reply.as_deref()));
        prop_assert_eq!(publish.payload, &payload);
        prop_assert_eq!(publish.headers.is_some(), lines.is_some());
        let read: Vec<_> = publish.headers.into_iter().flatten().map(Result::unwrap).collect();
        let lines: Vec<_> = lines.iter().flatten().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        prop_assert_eq!(read, lines);

        let mut in_parts = Vec::new();
        match lines_to_write {
            None => encode::publish_head(&mut in_parts, subject, answer, payload.len()),
            Some(lines) => {
                let block = HeaderBlock::new(&lines);
                encode::publish_with_headers_head(&mut in_parts, subject, answer, block, payload.len());
            }
        }
        prop_assert_eq!([&in_parts[..], &payload, encode::TAIL].concat(), bytes);
    }

    #[test]
    fn a_message_is_read_as_it_was_written(
        to in token(), sid in token(), reply in prop::option::of(token()), payload in payload(),
        status in prop::option::of((100..1000_u16, "([!-~]([ -~]{0,10}[!-~])?)?")),
    ) {
        let subject = Token::new(&to).unwrap();
        let answer = reply.as_ref().map(|reply| Token::new(reply).unwrap());
        let name = Sid::new(&sid).unwrap();
        let bytes = match &status {
            None => written!(encode::message_len(subject, name, answer, payload.len()), message(subject, name, answer, &payload)),
            Some((code, text)) => {
                let block = HeaderBlock::with_status(*code, text, &[]).unwrap();
                let len = encode::message_with_headers_len(subject, name, answer, block, payload.len());
                written!(len, message_with_headers(subject, name, answer, block, &payload))
            }
        };
        let ServerOp::Message(message) = server_op(&bytes) else { panic!("no MSG") };
        prop_assert_eq!((message.subject, message.sid, message.reply), (&to[..], &sid[..], reply.as_deref()));
        prop_assert_eq!(message.payload, &payload);
        prop_assert_eq!(message.headers.and_then(|headers| headers.status()), status.as_ref().map(|status| status.0));
        let text = message.headers.and_then(|headers| headers.description()).unwrap_or_default();
        prop_assert_eq!(text, status.as_ref().map_or(&b""[..], |status| status.1.as_bytes()));

        // And passed on as it is.
        if let Some(headers) = message.headers {
            let mut again = Vec::new();
            encode::message_with_headers(&mut again, subject, name, answer, headers.into(), &payload);
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn lines_are_read_as_they_were_written(
        filter in subject(), queue in prop::option::of(token()), sid in any::<u64>(), max in prop::option::of(0..1_000_000_000_u64),
        text in "[ -&(-~]{0,30}",
    ) {
        let digits = sid.to_string();
        let group = queue.as_ref().map(|queue| QueueGroup::new(queue).unwrap());
        let pattern = SubjectFilter::new(&filter).unwrap();
        let bytes = written!(encode::subscribe_len(pattern, group, sid.into()), subscribe(pattern, group, sid.into()));
        let ClientOp::Subscribe(subscribe) = client_op(&bytes) else { panic!("no SUB") };
        prop_assert_eq!((subscribe.subject, subscribe.queue), (&filter[..], queue.as_deref()));
        prop_assert_eq!(subscribe.sid, digits.as_bytes());

        let bytes = written!(encode::unsubscribe_len(sid.into(), max), unsubscribe(sid.into(), max));
        let ClientOp::Unsubscribe(unsubscribe) = client_op(&bytes) else { panic!("no UNSUB") };
        prop_assert_eq!((unsubscribe.sid, unsubscribe.max), (digits.as_bytes(), max));

        let json = format!("{{\"name\":{:?}}}", text);
        let line = JsonLine::new(&json).unwrap();
        let bytes = written!(encode::connect_len(line), connect(line));
        prop_assert_eq!(client_op(&bytes), ClientOp::Connect(json.as_bytes()));
        let bytes = written!(encode::info_len(line), info(line));
        prop_assert_eq!(server_op(&bytes), ServerOp::Info(json.as_bytes()));

        let error = ErrText::new(&text).unwrap();
        let bytes = written!(encode::err_len(error), err(error));
        let ServerOp::Err(read) = server_op(&bytes) else { panic!("no -ERR") };
        prop_assert_eq!(read.text().unwrap(), text);
    }

    /// Whatever the input: either there is no name, or what is written with it is one operation.
    #[test]
    fn no_name_can_end_a_line(bytes in prop::collection::vec(prop::sample::select(&b"a.*> \t\r\n\x00\xff"[..]), 0..8)) {
        let one = |out: &[u8]| { client_op(out); };
        if let Ok(subject) = Subject::new(&bytes) {
            let mut out = Vec::new();
            encode::publish(&mut out, subject, Some(subject), b"");
            one(&out);
        }
        if let (Ok(filter), Ok(queue), Ok(sid)) = (SubjectFilter::new(&bytes), QueueGroup::new(&bytes), Sid::new(&bytes)) {
            let mut out = Vec::new();
            encode::subscribe(&mut out, filter, Some(queue), sid);
            one(&out);
        }
        if let Ok(header) = Header::new("name", &bytes) {
            let mut out = Vec::new();
            encode::publish_with_headers(&mut out, Subject::new("a").unwrap(), None, HeaderBlock::new(&[header]), b"");
            let ClientOp::Publish(publish) = client_op(&out) else { panic!("no HPUB") };
            prop_assert_eq!(publish.headers.unwrap().iter().count(), 1);
        }
    }
}
